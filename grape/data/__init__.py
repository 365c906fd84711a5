"""Other people's data: files of every usual format, rows of every usual shape, as the columns of grape's own records."""
