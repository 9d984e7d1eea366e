-- Once, when the volume is new: the registry's database and the bank's, each owned by a role of its own. The passwords
-- are a demo's; tidemark's own is a secret.
CREATE ROLE registry LOGIN PASSWORD 'registry';
CREATE DATABASE registry OWNER registry;
CREATE ROLE bank LOGIN PASSWORD 'bank';
CREATE DATABASE bank OWNER bank;
