"""What is known of other libraries, one file for each, imported only where the library is imported already."""
