"""Programs that use genkern as a reader would; `make demo` runs `examples.digits`."""
