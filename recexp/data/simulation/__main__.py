"""``python -m recexp.data.simulation``: write a simulated shop."""

from recexp.data.simulation.simulator import main

if __name__ == "__main__":
    main()
