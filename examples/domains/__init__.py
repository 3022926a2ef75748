"""Seven worked examples, one for each domain: trained in half, exported, checked, served and asked."""
