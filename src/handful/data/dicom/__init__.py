"""DICOM series as volumes, by pydicom (the extra `dicom`)."""
