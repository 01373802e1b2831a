"""PostgreSQL servers that we manage: programs, data folders, the private server, pg_hba.conf."""
