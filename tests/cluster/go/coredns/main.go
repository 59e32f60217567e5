// Command coredns is CoreDNS with only the plugins that a cluster without a way out needs.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/template"
)

func init() {
	// The order of the chain, first to last: what this list lacks is not served.
	dnsserver.Directives = []string{"bind", "errors", "health", "hosts", "kubernetes", "template"}
}

func main() {
	coremain.Run()
}
