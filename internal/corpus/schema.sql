CREATE TABLE customers (id int PRIMARY KEY DEFAULT 1000 + random() * 1e9, name varchar(80) NOT NULL, email varchar(80), balance int NOT NULL DEFAULT 100);
CREATE TABLE orders (id int PRIMARY KEY DEFAULT 1000 + random() * 1e9, customer_id int NOT NULL, amount int NOT NULL, status varchar(20) NOT NULL DEFAULT 'open', note varchar(80));
CREATE TABLE jobs (id int PRIMARY KEY DEFAULT 1000 + random() * 1e9, payload varchar(80) NOT NULL, state varchar(20) NOT NULL DEFAULT 'new');
CREATE TABLE events (id int DEFAULT 1000 + random() * 1e9, kind varchar(20) NOT NULL, body varchar(80));
INSERT INTO customers SELECT i, 'customer ' || i, CASE WHEN i % 5 > 0 THEN 'c' || i || '@example.com' END FROM generate_series(1, 20) i;
INSERT INTO orders SELECT i, i % 20 + 1, i, 'open', CASE WHEN i % 3 > 0 THEN 'note ' || i END FROM generate_series(1, 60) i;
INSERT INTO jobs SELECT i, 'job ' || i FROM generate_series(1, 30) i;
