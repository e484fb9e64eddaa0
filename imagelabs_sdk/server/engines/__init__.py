"""What draws: each engine speaks one Protocol, `base.Engine`."""
