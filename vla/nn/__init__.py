"""Network parts that know no robot and no dataset; torch only."""
