module github.com/baldur-go/baldur/cmd/baldur

go 1.26.0

require (
	github.com/baldur-go/baldur v0.1.0
	github.com/lib/pq v1.12.3
)
