"""What is written of results: claims judged, and the pages of docs."""
