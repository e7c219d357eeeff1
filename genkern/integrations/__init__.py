"""One line that puts genkern's kernels into other people's code; docs/integrations.md.

`diffusers`, `ddpm_pytorch` and `pythae` change classes of the package that they are for, with
`apply()` and `revert()`, or `with apply():`. `guided_diffusion` has that repository's functions.
Each module needs its package and is imported when it is used, not with this one.
"""
