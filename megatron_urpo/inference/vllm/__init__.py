"""vLLM's dialect: how a server is started, asked and updated. vLLM itself is never imported here.

`extension/` is no part of the package: servers load it into their own processes.
"""
