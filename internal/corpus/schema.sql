CREATE TABLE customers (id serial PRIMARY KEY, name text NOT NULL, email text, balance int NOT NULL DEFAULT 100);
CREATE TABLE orders (id serial PRIMARY KEY, customer_id int NOT NULL, amount int NOT NULL, status text NOT NULL DEFAULT 'open', note text);
CREATE TABLE jobs (id serial PRIMARY KEY, payload text NOT NULL, state text NOT NULL DEFAULT 'new');
CREATE TABLE events (id bigserial PRIMARY KEY, kind text NOT NULL, body text);
INSERT INTO customers (name, email) SELECT 'customer ' || i, CASE WHEN i % 5 > 0 THEN 'c' || i || '@example.com' END FROM generate_series(1, 20) i;
INSERT INTO orders (customer_id, amount, note) SELECT i % 20 + 1, i, CASE WHEN i % 3 > 0 THEN 'note ' || i END FROM generate_series(1, 60) i;
INSERT INTO jobs (payload) SELECT 'job ' || i FROM generate_series(1, 30) i;
