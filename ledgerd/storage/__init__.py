"""The only room that speaks SQL: connections, migrations, queries, and the embedded Postgres."""
