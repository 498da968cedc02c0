// Package quorumtest tests baldur's quorum while everything around it fails: see
// README.md. It is made of tests only.
package quorumtest
