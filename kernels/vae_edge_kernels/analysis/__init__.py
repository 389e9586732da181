"""What a kernel costs, without a GPU: its machine code against budgets (`sass`), and the `roofline` of a network."""
