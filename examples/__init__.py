"""Programs that use genkern as a reader would; `make demo` runs `examples.vae_digits`."""
