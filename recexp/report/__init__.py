"""Tables, figures, statistical tests and a page from the results of finished runs.

Nothing here but ``attention`` runs a model: results are read without torch.
"""
