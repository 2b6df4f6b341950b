"""Programs -> programs. Knows jaxprs and sample sites; knows nothing of models or guides.

Read in this order: `site` (the primitive), `staging`, `interpreter` and `control` (the shared
engine), then the transformations: `seed`, `trace` (simulate, log_density, generate), `edit`
(nest, scale, mask, condition, do), `replay`, and `expect`: `plan` and `estimators` say what a draw
is, `direct` and `paths` run the program, `derivatives` are `grad` and `value_and_grad`.
"""

from . import control as _control  # noqa: F401  registers the control-flow rules
