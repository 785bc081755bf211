"""Do the operators compute on this machine what the equations say, and how fast? `python -m mmdat.check`"""
