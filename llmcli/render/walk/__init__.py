"""The words of the guided walk: a function a page, from its facts to paragraphs and tables."""
