"""``python -m recexp.export``: a finished run's model as ONNX, pt2 or safetensors."""

from recexp.runs.export import main

if __name__ == "__main__":
    main()
