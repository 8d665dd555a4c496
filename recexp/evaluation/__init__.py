"""From a trained model to its metrics: candidates, scores, ranks, means over users.

A protocol never knows the model, and a model never knows its protocol.
"""
