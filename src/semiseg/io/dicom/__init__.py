"""DICOM: series in folders and zips, as scans. Needs the extra `dicom`."""
