"""Numbers as people read them."""


def short(number: float) -> str:
    """A count in three digits.

    >>> short(999), short(1234), short(2.5e9), short(123456)
    ('999', '1.23k', '2.5G', '123k')
    """
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * factor:
            return f"{float(f'{number / factor:.3g}'):g}{unit}"
    return f"{number:g}"


def bytes_of(number: int) -> str:
    """An amount of memory.

    >>> bytes_of(100), bytes_of(4096), bytes_of(3_000_000)
    ('100 B', '4 KiB', '2.86 MiB')
    """
    amount, units = float(number), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    return f"{float(f'{amount:.3g}'):g} {units[0]}"


def percent(share: float) -> str:
    """A share of a whole.

    >>> percent(0.5), percent(0.0004), percent(0)
    ('50%', '<0.1%', '')
    """
    if share <= 0:
        return ""
    return "<0.1%" if share < 0.001 else f"{float(f'{100 * share:.2g}'):g}%"
