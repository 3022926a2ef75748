"""Reports for people, each a page of HTML that needs nothing but itself."""
