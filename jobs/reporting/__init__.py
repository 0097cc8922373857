"""What planners and analysts get in the morning: the page, the lists, and the tables behind them."""
