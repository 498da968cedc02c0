-- name: AddItem :one
INSERT INTO items (name, quantity) VALUES ($1, $2) RETURNING *;

-- name: ListItems :many
SELECT * FROM items ORDER BY id;

-- name: SetQuantity :execrows
UPDATE items SET quantity = $2 WHERE name = $1;

-- name: Sleep :exec
SELECT pg_sleep(sqlc.arg(seconds)::double precision);
