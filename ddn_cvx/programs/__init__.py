"""Programs: what a declaration compiles to once; variables, rows, cones, recovery of variables.

Signs, once for the package. Every program is, for each element of a batch,

    minimise f(u, x)   subject to   s = -c(u, x) in K

with the inputs ``x`` and a product of cones ``K`` (:class:`~ddn_cvx.cones.product.Cones`): a row of
the zero cone is the equality ``c_i = 0``, a row of the nonnegative cone the inequality ``c_i <=
0``. The Lagrangian

    L(u, y, x) = f(u, x) + <y, c(u, x)>,   y in K*

has to bound the optimal value from below, so that no feasible point may cost more in ``L`` than in
``f``: ``<y, c> = -<y, s> <= 0`` for all ``s`` in ``K`` says that ``y`` is in the dual cone ``K*``.
An inequality's multiplier is nonnegative, and ``y`` is the rate at which the optimal value rises
when a constant is added to ``c``. A solution satisfies

    grad_u L(u, y, x) = 0,   s in K,   y in K*,   <s, y> = 0.

For a cone program ``f = 1/2 u' P u + q' u`` and ``c = A u - b``.
"""
