"""The process that trains; everything that imports torch for a run is here."""
