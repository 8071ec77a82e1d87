"""The study of the papers: what is measured, how each claim is judged, and the documents made of the results."""
