"""Plain data to what is read: numbers in words, tables, drawings, pages."""
