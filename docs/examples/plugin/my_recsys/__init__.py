"""Example of a plugin: own parts for recexp.

``python -m recexp plugins=[my_recsys] 'hydra.searchpath=[pkg://my_recsys.conf]'`` adds
``model=history_mean`` and ``loss=hinge`` to the choices.
"""
