"""Programs -> programs. Knows jaxprs and sample sites; knows nothing of models or guides.

Read in this order: `site` (the primitive), `staging`, `interpreter` and `control` (the shared
engine), then the transformations: `seed`, `trace` (simulate, log_density, generate), `edit`
(nest, scale, mask, condition, do), `replay`, and `expect`. Measures whose density is an estimate
are one equation (`nested`); `inference` holds the algorithms behind it, `bounds` and `direction`
what the estimates are unbiased for.

`expect` in the order of its work: `soundness` (may a choice be pathwise?), `plan` and `estimators`
(what serves which choice), `flat` (the program as one list), `dependence` and `credit` (which part
of the objective a choice answers for), `direct` and `paths` (running it), `weighing` and `tail`
(weights times terms, and their sum); `pool` draws for many sites at once. `derivatives` are `grad`
and `value_and_grad`; `check`, `tune` and `strategies` are what users ask about and of an
expectation.
"""

from . import control as _control  # noqa: F401  registers the control-flow rules
