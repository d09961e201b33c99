"""Report: what people look at: tables, pages, pictures and plots."""
