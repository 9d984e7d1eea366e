/** Starts DynamoDB Local on the loopback address alone; its own main class listens on every address. */
public final class LoopbackDynamoDB {
  public static void main(String[] args) throws Exception {
    var proxy = software.amazon.dynamodb.services.local.main.ServerRunner.createServerFromCommandLineArgs(args);
    var field = proxy.getClass().getDeclaredField("server");
    field.setAccessible(true);
    for (var connector : ((org.eclipse.jetty.server.Server) field.get(proxy)).getConnectors()) {
      if (connector instanceof org.eclipse.jetty.server.ServerConnector server) {
        server.setHost("127.0.0.1");
      }
    }
    proxy.start();
    proxy.join();
  }
}
