"""The rows of a dataset: which shape they have, what of them is text, and their tokens.

``forms`` and ``turns`` are plain Python without imports of the workbench: a run's cell contains their functions as they stand.
Where rows lie is ``dataset_files``' part.
"""
