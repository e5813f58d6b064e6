"""Which config a launch takes."""
