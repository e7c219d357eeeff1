"""What the site needs beyond Sphinx: each module is one of its extensions."""
