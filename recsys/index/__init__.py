"""The items nearest to a query: all of them compared, or those at the ends of the best paths."""
