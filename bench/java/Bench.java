import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.PrintWriter;
import java.lang.reflect.Proxy;
import java.sql.Connection;
import java.util.logging.Logger;
import javax.sql.DataSource;

/**
 * Prints the nanoseconds that HikariCP takes for getConnection and close, on a driver that does
 * nothing, 20 frames below main. Argument: leakDetectionThreshold in ms, 0 for none.
 */
public class Bench {
    static final int WARM_UP = 10, ROUNDS = 15, CYCLES = 400_000;

    public static void main(String[] args) throws Exception {
        HikariConfig config = new HikariConfig();
        config.setDataSource(new NullDataSource());
        config.setMaximumPoolSize(2);
        config.setLeakDetectionThreshold(Long.parseLong(args[0]));
        try (HikariDataSource pool = new HikariDataSource(config)) {
            System.out.printf("%.1f%n", below(17, pool));
        }
    }

    /** A recursion: unlike Go's runtime.Callers, fillInStackTrace gains nothing from it. */
    static double below(int frames, DataSource pool) throws Exception {
        return frames > 0 ? below(frames - 1, pool) : measure(pool);
    }

    static double measure(DataSource pool) throws Exception {
        double[] ns = new double[ROUNDS];
        for (int round = -WARM_UP; round < ROUNDS; round++) {
            long begin = System.nanoTime();
            for (int i = 0; i < CYCLES; i++) {
                pool.getConnection().close();
            }
            if (round >= 0) {
                ns[round] = (System.nanoTime() - begin) / (double) CYCLES;
            }
        }
        java.util.Arrays.sort(ns);
        return ns[ROUNDS / 2];
    }

    static final class NullDataSource implements DataSource {
        private static final Connection CONNECTION = (Connection) Proxy.newProxyInstance(
                Bench.class.getClassLoader(), new Class<?>[] {Connection.class}, (proxy, method, args) -> {
                    switch (method.getName()) {
                        case "isValid":
                        case "getAutoCommit":
                            return true;
                        case "isClosed":
                        case "isReadOnly":
                            return false;
                        case "getTransactionIsolation":
                            return Connection.TRANSACTION_READ_COMMITTED;
                        case "getNetworkTimeout":
                        case "hashCode":
                            return 0;
                        case "toString":
                            return "null connection";
                        default:
                            return null;
                    }
                });

        public Connection getConnection() { return CONNECTION; }
        public Connection getConnection(String user, String password) { return CONNECTION; }
        public PrintWriter getLogWriter() { return null; }
        public void setLogWriter(PrintWriter out) {}
        public void setLoginTimeout(int seconds) {}
        public int getLoginTimeout() { return 0; }
        public Logger getParentLogger() { return null; }
        public <T> T unwrap(Class<T> type) { return null; }
        public boolean isWrapperFor(Class<?> type) { return false; }
    }
}
