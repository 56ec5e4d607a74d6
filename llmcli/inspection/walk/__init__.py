"""The facts of the guided walk, a function a page: what is computed, none of the words."""
