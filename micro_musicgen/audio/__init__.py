"""Audio files in and out, spectra, and sounds of our own making."""
