"""One run, from its config to its ``result.json``, and what reads a finished run again.

``result``, ``identity``, ``loading`` and ``convergence`` import no torch: the report needs them.
"""
