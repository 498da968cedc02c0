module github.com/baldur-go/baldur/cmd/baldur

go 1.26.0

require (
	github.com/baldur-go/baldur v0.1.0
	github.com/lib/pq v1.12.3
)

require (
	github.com/fergusstrange/embedded-postgres v1.34.0 // indirect
	github.com/xi2/xz v0.0.0-20171230120015-48954b6210f8 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)
