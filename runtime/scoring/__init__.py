"""Scoring of archives: folders, tar files and tables of any size become tables of predictions."""
