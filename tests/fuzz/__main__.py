"""``python -m tests.fuzz``."""

from tests.fuzz.many import main  # a module of its own: processes are spawned from it

if __name__ == "__main__":
    main()
