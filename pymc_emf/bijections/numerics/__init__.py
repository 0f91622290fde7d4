"""Special functions, roots and quadrature, and quantile maps that rest on them."""
