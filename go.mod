module github.com/baldur-go/baldur

go 1.26

require (
	github.com/lib/pq v1.12.3
	github.com/petermattis/goid v0.0.0-20261109124353-7cfa343ad0ab
)

require (
	github.com/fergusstrange/embedded-postgres v1.34.0 // indirect
	github.com/xi2/xz v0.0.0-20171230120015-48954b6210f8 // indirect
)
