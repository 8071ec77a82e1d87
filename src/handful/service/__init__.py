"""A web page for annotating, learning, segmenting and reviewing a cohort."""
