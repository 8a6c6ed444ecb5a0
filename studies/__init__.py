"""Studies: questions of research, with the code that answers them. They import abckd_dns; nothing imports them."""
