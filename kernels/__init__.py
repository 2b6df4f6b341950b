"""varax.kernels: array operations whose speed decides the speed of structured inference.

A kernel maps arrays to arrays and knows nothing of programs, sites or measures. Each has a short
definition in jax.numpy, and faster implementations that compute the same function or refuse
with a reason. This layer imports no other layer of varax.
"""
